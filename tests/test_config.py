import pytest

from config import Config, ConfigError, load_config


def test_yaml_then_command_line(tmp_path):
    assert load_config([]) == Config()
    path = tmp_path / "a.yaml"
    path.write_text("epochs: 3\nlearning_rate: 2e-3\nsources:\n  photos: 2\n")
    config = load_config([str(path), "epochs=5", "teacher=none", "initial="])
    assert (config.epochs, config.learning_rate, config.teacher, config.initial) == (5, 2e-3, "none", "")
    assert config.sources == {"photos": 2}


@pytest.mark.parametrize("name", ["release", "wide"])
def test_committed_configurations_load(name):
    assert load_config([f"configs/{name}.yaml"]).name == name


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("epoch=3", "unknown key 'epoch'"),
        ("epochs=many", "epochs from the command line must be a whole number from 1, got 'many'"),
        ("epochs=2.5", "must be a whole number"),
        ("epochs=0", "must be a whole number from 1"),
        ("warmup_steps=-1", "must be a whole number from 0"),
        ("precision=fp8", "must be one of fp32, bf16, got 'fp8'"),
        ("learning_rate=fast", "learning_rate from the command line must be a finite number"),
        ("ssim=.nan", "must be a finite number"),
        ("pattern_share=-1", "must be a number from 0 to 1"),
        ("sources={}", "positive weights"),
        ("name=[1]", "must be text"),
        ("sources={photos: -1}", "positive weights"),
        ("sources=photos", "mapping"),
        ("teacher=[", "the value of teacher is not valid YAML"),
        ("name=2026-13-41", "not valid YAML"),
        ("name=!!python/object/apply:os.abort []", "not valid YAML"),
        ("missing.yaml", "cannot read missing.yaml"),
        ("release", "neither a .yaml file nor key=value"),
    ],
)
def test_mistakes_are_named(argument, message):
    with pytest.raises(ConfigError) as error:
        load_config([argument])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"- 1\n- 2\n", "key: value"), (b"name: \xff\xfe", "YAML"), (b"[" * 5000, "YAML")]
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "list.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_config([str(path)])
