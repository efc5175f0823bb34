"""The networks: tensors in, tensors out. They know no file, no image and no prompt."""
