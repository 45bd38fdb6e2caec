"""Recompute dinov2_losses.json by running the official code.

    python tests/golden/regenerate_dinov2_losses.py CLONE_OF_DINOV2

Needs a clone of github.com/facebookresearch/dinov2 (Apache-2.0); its files are run, not copied.
Reductions over views and crops are those of its ``dinov2/train/ssl_meta_arch.py``.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import torch
import torch.distributed as dist
from inputs import (
    CENTER,
    EMBEDDING,
    MASKED_PATCHES,
    N_GLOBAL,
    N_PROTOTYPES,
    N_VIEWS,
    STUDENT_CLS,
    STUDENT_PATCHES,
    TEACHER_CLS,
    TEACHER_PATCHES,
    TEACHER_TEMPERATURE,
)


def official(clone: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, clone / "dinov2" / "loss" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dino_numbers(clone: Path) -> dict[str, float | list[float]]:
    loss = official(clone, "dino_clstoken_loss").DINOLoss(N_PROTOTYPES)
    student, teacher = torch.from_numpy(STUDENT_CLS), torch.from_numpy(TEACHER_CLS)
    targets = loss.sinkhorn_knopp_teacher(teacher.flatten(0, 1), TEACHER_TEMPERATURE)
    targets = targets.view(teacher.shape)
    n_terms = N_GLOBAL * (N_GLOBAL - 1) + N_GLOBAL * (N_VIEWS - N_GLOBAL)
    across = [student[:N_GLOBAL].flatten(0, 1)], [targets.flip(0).flatten(0, 1)]
    total = loss(list(student[N_GLOBAL:]), list(targets)) + loss(*across) * N_GLOBAL
    loss.center.copy_(torch.from_numpy(CENTER))
    centered = loss.softmax_center_teacher(teacher.flatten(0, 1), TEACHER_TEMPERATURE)
    loss.update_center(teacher.flatten(0, 1))
    loss.apply_center_update()
    return {
        "dino": total.item() / n_terms,
        "sinkhorn_first_row": targets[0, 0].tolist(),
        "centered_first_row": centered[0].tolist(),
        "next_center": loss.center[0].tolist(),
    }


def ibot_number(clone: Path) -> float:
    loss = official(clone, "ibot_patch_loss").iBOTPatchLoss(N_PROTOTYPES)
    n_masked = torch.tensor(sum(MASKED_PATCHES))
    teacher = torch.from_numpy(TEACHER_PATCHES)
    targets = loss.sinkhorn_knopp_teacher(
        teacher, TEACHER_TEMPERATURE, n_masked_patches_tensor=n_masked
    )
    masks = torch.zeros(len(MASKED_PATCHES), 8, dtype=torch.bool)
    for image, n in enumerate(MASKED_PATCHES):
        masks[image, :n] = True
    student = torch.from_numpy(STUDENT_PATCHES)
    return loss.forward_masked(student, targets, student_masks_flat=masks).item()


def main() -> None:
    clone = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=0, world_size=1)
        numbers = {
            "origin": "facebookresearch/dinov2, see regenerate_dinov2_losses.py",
            **dino_numbers(clone),
            "ibot": ibot_number(clone),
            "koleo": official(clone, "koleo_loss").KoLeoLoss()(torch.from_numpy(EMBEDDING)).item(),
        }
        dist.destroy_process_group()
    output = Path(__file__).with_name("dinov2_losses.json")
    output.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
