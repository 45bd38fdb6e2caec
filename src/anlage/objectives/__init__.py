"""What is minimised: losses and the targets they compare with, as functions of tensors."""
