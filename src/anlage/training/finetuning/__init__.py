"""Fine-tuning on labels of slides: one stage."""
