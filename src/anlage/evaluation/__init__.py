"""Evaluation: what a frozen encoder is worth on labelled tiles, beside its floors."""
