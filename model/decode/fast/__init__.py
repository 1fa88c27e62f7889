"""The fast path: an inference-only re-implementation of `Llama`'s forward pass.

`FastModel` computes the same function as `Llama`, in fewer and larger operations. Nothing outside
`model.decode.inference_model` depends on it.
"""
