"""The registered experiments. Import this module (or call `register`) before asking for one."""

from official.core import config_definitions, exp_factory
from official.nlp.configs import bert, encoders

from official_bert import devices, optimization, trainer
from official_bert.input import PretrainDataConfig
from official_bert.pretraining_task import LargeBatchPretrainConfig

PRETRAINING = "bert/large_batch_pretraining"


def next_sentence_head(hidden_size: int, dropout_rate: float = 0.1) -> bert.ClsHeadConfig:
    """The next-sentence head: a tanh pooler as wide as the encoder, then two logits."""
    return bert.ClsHeadConfig(
        inner_dim=hidden_size, num_classes=2, dropout_rate=dropout_rate, name="next_sentence"
    )


@exp_factory.register_config_factory(PRETRAINING)
def large_batch_pretraining() -> config_definitions.ExperimentConfig:
    """BERT pretraining (masked words and next sentence) with LANS and eq. (9).

    The defaults are BERT-base on one device; the recipes in `official_bert/configs` set the
    rest.
    """
    encoder = encoders.EncoderConfig(type="bert")
    return config_definitions.ExperimentConfig(
        runtime=devices.RuntimeConfig(distribution_strategy="one_device"),
        task=LargeBatchPretrainConfig(
            model=bert.PretrainerConfig(
                encoder=encoder,
                cls_heads=[next_sentence_head(encoder.get().hidden_size)],
            ),
            train_data=PretrainDataConfig(is_training=True),
            validation_data=PretrainDataConfig(is_training=False),
        ),
        trainer=trainer.TrainerConfig(
            optimizer_config=optimization.OptimizationConfig(
                {
                    "optimizer": {"type": "lans"},
                    "learning_rate": {"type": "warmup_constant_decay"},
                }
            ),
            # A non-finite step is the optimizer's business (skip_nonfinite); Model Garden's
            # recovery would reload an old checkpoint and replay the same batch.
            recovery_max_trials=-1,
        ),
        restrictions=[
            "task.train_data.is_training != None",
            "task.validation_data.is_training != None",
        ],
    )


def register() -> None:
    """Makes our experiments, optimizers and schedule known to Model Garden. Idempotent."""
    optimization.register()
