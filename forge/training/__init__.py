"""The loop and what it calls: objectives, schedules, optimizers, evaluation, checkpoints, callbacks."""
