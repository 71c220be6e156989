"""A trained model in use: gallery files and exact search, verdicts, evidence, and networks of ONNX."""
