"""Other programs' formats: Hugging Face folders in and out, GGUF out."""
