"""The nouns: what lies on disk. Declarations and validation only; no I/O, no torch, ray, prefect or faiss."""
