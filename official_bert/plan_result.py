"""One phase of a plan with all that follows from it: its config, time and memory."""

import dataclasses

from official.core import config_definitions

import tfrecords
from official_bert import estimates, plan_recipe, plan_steps, plan_time
from official_bert.plan_steps import Phase
from official_bert.plan_time import Assumptions, Cluster, StepTime, Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """One phase, planned.

    Attributes:
        phase: steps, rates and batches.
        start: the reference of its rules.
        params: the config that the recipe makes.
        recipe: its fields.
        work: what it computes.
        assumed: what is assumed of its time.
        step: the time of a step.
        memory: of a device, estimated.
    """

    phase: Phase
    start: plan_steps.Reference
    params: config_definitions.ExperimentConfig
    recipe: plan_recipe.Recipe
    work: Work
    assumed: Assumptions
    step: StepTime
    memory: estimates.Memory


def complete(
    phase: Phase,
    start: plan_steps.Reference,
    recipe: plan_recipe.Recipe,
    *,
    cluster: Cluster,
    assumed: Assumptions,
    manifest: tfrecords.Manifest | None,
) -> Planned:
    """A phase with its time and memory, after training's own checks of its recipe.

    Args:
        phase: from `plan_steps.plan_phase`.
        start: the reference of its rules.
        recipe: from `plan_recipe.fill`.
        cluster: the devices.
        assumed: of the time.
        manifest: of the shards, where there are any.

    Raises:
        UserError: training would refuse the recipe.
    """
    params = plan_recipe.load(plan_recipe.text(recipe, []))
    plan_recipe.check(params, phase)
    predictions = estimates.predictions(params.task.train_data, manifest)
    labelled = params.task.train_data.use_next_sentence_label
    model, batch_cut = params.task.model, phase.cut
    work = Work(
        flops_per_example=plan_time.flops_per_example(
            model, phase.seq_length, predictions, labelled
        ),
        trained=estimates.parameters(model, labelled).trained,
        seq_length=phase.seq_length,
        global_batch=batch_cut.global_batch,
        micro_batch=batch_cut.micro_batch,
        steps=phase.steps,
        optimizer=params.trainer.optimizer_config.optimizer.type,
    )
    return Planned(
        phase=phase,
        start=start,
        params=params,
        recipe=recipe,
        work=work,
        assumed=assumed,
        step=plan_time.step_time(work, cluster, assumed),
        memory=estimates.memory(
            params,
            examples=batch_cut.micro_batch,
            micro_batches=batch_cut.micro_batches,
            predictions=predictions,
        ),
    )
