"""What measures the sharpener. Nothing at the top imports it but `evaluate.py`."""
