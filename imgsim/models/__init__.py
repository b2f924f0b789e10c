"""Many families of vision models behind one door: loading, pooling, batches, ONNX."""
