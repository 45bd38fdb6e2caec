"""Inputs of the golden numbers: the same on every machine, from no random generator."""

from __future__ import annotations

import numpy as np


def wave(*shape: int, phase: float) -> np.ndarray:
    """Values in [-1, 1] without a visible pattern, float32."""
    index = np.arange(np.prod(shape), dtype=np.float64)
    return np.sin(index * index * 0.7 + phase).astype(np.float32).reshape(shape)


N_VIEWS, N_GLOBAL, N_TILES, N_PROTOTYPES, WIDTH = 6, 2, 5, 32, 16
MASKED_PATCHES = (3, 0, 5, 2)  # of each of four global views
STUDENT_CLS = wave(N_VIEWS, N_TILES, N_PROTOTYPES, phase=0.1)
TEACHER_CLS = wave(N_GLOBAL, N_TILES, N_PROTOTYPES, phase=0.2)
STUDENT_PATCHES = wave(sum(MASKED_PATCHES), N_PROTOTYPES, phase=0.3)
TEACHER_PATCHES = wave(sum(MASKED_PATCHES), N_PROTOTYPES, phase=0.4)
EMBEDDING = wave(12, WIDTH, phase=0.5)
CENTER = wave(N_PROTOTYPES, phase=0.6)
TEACHER_TEMPERATURE = 0.05
