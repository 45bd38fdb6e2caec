"""Linear probes by torch.nn and torch.optim, one run at a time, batch by batch."""

import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch import nn
from torch.nn import functional


def batches(n_rows, batch, n_steps, rng):
    """Index of each batch, and whether it ends an epoch."""
    done = 0
    while done < n_steps:
        order = torch.randperm(n_rows, generator=rng)
        for start in range(0, n_rows, batch):
            done += 1
            yield order[start : start + batch], start + batch >= n_rows or done == n_steps
            if done == n_steps:
                return


def first_layer(width, n_outputs, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(width, n_outputs)


def eva_probe(
    train, code, *, n_classes, seed, n_steps, batch, low_epochs=0, is_sigmoid=False,
    validation=None, patience=10**9,
):  # fmt: skip
    """Weights and biases by eva's protocol, and the step that they are of."""
    layer = first_layer(train.shape[1], 1 if is_sigmoid else n_classes, seed)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=3e-4, foreach=False, fused=False)
    rng = torch.Generator().manual_seed(seed)
    best, n_since, n_epochs = (-1, None, None, 0), 0, 0
    step = 0
    for rows, is_end in batches(len(train), batch, n_steps, rng):
        optimizer.param_groups[0]["lr"] = 1e-4 if n_epochs < low_epochs else 3e-4
        if is_sigmoid:
            target = code[rows].float()
            loss = functional.binary_cross_entropy_with_logits(layer(train[rows])[:, 0], target)
        else:
            loss = functional.cross_entropy(layer(train[rows]), code[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        n_epochs += is_end
        if validation is not None and is_end:
            logits = layer(validation[0]).detach()
            found = (logits[:, 0] > 0).long() if is_sigmoid else logits.argmax(1)
            score = balanced_accuracy_score(validation[1], found)
            n_since += 1
            if score > best[0]:
                weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
                best, n_since = (score, weight, bias, step), 0
            if n_since == patience:
                break
    if validation is not None:
        return best[1:]
    return layer.weight.detach(), layer.bias.detach(), step


def sgd_probe(
    train, code, *, validation, n_classes, seed, n_steps, batch, lr, weight_decay=0.0,
    momentum=0.0, check_every, choose, fixed_draws=False,
):  # fmt: skip
    """Weights and biases by SGD with a cosine, and the step that validation chose."""
    layer = first_layer(train.shape[1], n_classes, seed)
    optimizer = torch.optim.SGD(
        layer.parameters(), lr=lr, weight_decay=weight_decay, momentum=momentum
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=n_steps)
    rng = torch.Generator().manual_seed(seed)
    rows_of_steps = [rows for rows, _ in batches(len(train), batch, n_steps, rng)]
    if fixed_draws:
        rng = torch.Generator().manual_seed(seed)
        epoch = torch.randint(len(train), (len(train),), generator=rng).split(batch)
        rows_of_steps = [epoch[step % len(epoch)] for step in range(n_steps)]
    best = None
    for step, rows in enumerate(rows_of_steps, start=1):
        loss = functional.cross_entropy(layer(train[rows]), code[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % check_every == 0 or step == n_steps:
            logits = layer(validation[0]).detach()
            if choose == "loss":
                score = -functional.cross_entropy(logits, validation[1]).item()
            else:
                score = f1_score(validation[1], logits.argmax(1), average="weighted")
            if best is None or score > best[0]:
                best = (score, layer.weight.detach().clone(), layer.bias.detach().clone(), step)
    return best[1:]
