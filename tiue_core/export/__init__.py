"""The student as one graph: token ids and noise in, picture out.

    write.py      pipeline -> .onnx or .pt2                 needs torch
    runtime.py    .onnx -> pictures                         needs onnxruntime, numpy, tokenizers
    site.py       .onnx -> a folder that paints in a browser

A student has no loop, so it is a plain function and any runtime can hold it.
"""
