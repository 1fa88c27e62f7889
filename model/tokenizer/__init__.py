"""Text to ids and back: SentencePiece models and imported Hugging Face tokenizers."""
