"""Lets a Hugging Face `Trainer` report: `Trainer(..., callbacks=[Report()])`."""

from oialr_search_report import report
from transformers import TrainerCallback


class Report(TrainerCallback):
    """After each evaluation; with `save_strategy="epoch"`, `output_dir=state_dir()` and
    `trainer.train(resume_from_checkpoint=get_last_checkpoint(state_dir()))` another attempt goes on
    from the last checkpoint."""

    def on_evaluate(self, args, state, control, metrics, **_):
        numbers = {k: v for k, v in metrics.items() if k != "epoch"}
        if report(epoch=round(state.epoch), step=state.global_step, **numbers):
            control.should_training_stop = True
        return control
