"""A workbench for disaggregated LLM inference: prefill on one device, decode on another, KV cache in between."""
