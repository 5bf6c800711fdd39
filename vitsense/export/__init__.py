"""From a plan to files that run elsewhere: packed weights, ONNX, and other tools' configurations.

Everything starts from a `FixedModel`: a model, a plan, and one fixed grid for every planned site.
"""
