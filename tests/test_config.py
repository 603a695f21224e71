import pytest

from config import Config, ConfigError, load_config


def test_defaults():
    assert load_config([]) == Config()


def test_yaml_then_command_line(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("epochs: 3\nlearning_rate: 2e-3\nsources:\n  photos: 2\n")
    config = load_config([str(path), "epochs=5", "teacher=none"])
    assert (config.epochs, config.learning_rate, config.teacher) == (5, 2e-3, "none")
    assert config.sources == {"photos": 2}


def test_committed_configurations_load():
    assert load_config(["configs/release.yaml"]).name == "release"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("epoch=3", "unknown key 'epoch'"),
        ("epochs=many", "epochs from the command line must be int from 1 to 1000000, got 'many'"),
        ("epochs=2.5", "must be int"),
        ("epochs=true", "must be int"),
        ("learning_rate=fast", "must be float"),
        ("sources={photos: -1}", "positive weights"),
        ("sources=photos", "mapping"),
        ("teacher=[", "not valid YAML"),
        ("missing.yaml", "cannot read missing.yaml"),
        ("release", "neither a .yaml file nor key=value"),
    ],
)
def test_mistakes_are_named(argument, message):
    with pytest.raises(ConfigError) as error:
        load_config([argument])
    assert message in str(error.value)


def test_yaml_must_be_a_mapping(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match="key: value"):
        load_config([str(path)])
