"""What can be refused before anything is built: data against model, schedule against run."""

from official.core import config_definitions

from official_bert import checkpoints, optimization
from official_bert.input import PretrainDataConfig, check_shards
from official_bert.pretraining_task import LargeBatchPretrainConfig
from tfrecords.errors import UserError


def check(params: config_definitions.ExperimentConfig, mode: str) -> None:
    """Checks a whole config; a run that passes does not fail on its settings later.

    Args:
      params: the config, names and types checked.
      mode: `train`, `eval` or `train_and_eval`: data of a split that is not used may be absent.

    Raises:
      UserError: the first thing that does not fit, by field name.
    """
    if params.trainer.train_steps < 1 and "train" in mode:
        raise UserError(
            f"trainer.train_steps is {params.trainer.train_steps}; expected at least 1: "
            "give a recipe with --config_file, or --params_override=trainer.train_steps=N"
        )
    if "train" in mode:
        optimization.build_optimizer(params.trainer.optimizer_config, params.trainer.train_steps)
    if isinstance(params.task, LargeBatchPretrainConfig):
        _check_pretraining(params.task, mode)


def _check_pretraining(task: LargeBatchPretrainConfig, mode: str) -> None:
    if task.init_checkpoint and "train" in mode:
        checkpoints.latest(task.init_checkpoint)
    encoder = task.model.encoder.get()
    for head in task.model.cls_heads:
        if head.name == "next_sentence" and head.inner_dim != encoder.hidden_size:
            raise UserError(
                f"task.model.cls_heads inner_dim is {head.inner_dim}; expected the encoder's "
                f"hidden_size {encoder.hidden_size}, since this head's pooler is the one exported"
            )
    for part in (task.train_data, task.validation_data):
        _check_data(part, encoder.vocab_size, encoder.max_position_embeddings, mode)


def _check_data(data: PretrainDataConfig, vocab_size: int, positions: int, mode: str) -> None:
    if ("train" if data.is_training else "eval") not in mode:
        return
    if data.seq_length > positions:
        raise UserError(
            f"seq_length {data.seq_length} is longer than the encoder's "
            f"max_position_embeddings {positions}"
        )
    check_shards(data, vocab_size)
