"""Every setting of training reaches what it is to change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fmnist_tf.model.phases import apply_plan, plan_phase
from fmnist_tf.pipeline.plan import plan_layer_decay, plan_training
from fmnist_tf.settings.complete import Settings
from fmnist_tf.training.records import TrainingPlan

LABELS = np.repeat([0, 1, 2], [60, 30, 10])


def plan(**settings: Any) -> TrainingPlan:
    """Return the plan of 100 rows in batches of 8: 13 steps an epoch."""
    config, _ = Settings({"batch_size": 8, "epochs": 6, **settings}).complete()
    return plan_training(config, LABELS, n_classes=4, background=7)


def test_what_is_planned_without_options() -> None:
    rates = plan().rates
    assert (rates.steps_per_epoch, rates.epochs, rates.warmup_steps) == (13, 6, 0)
    assert plan().class_weights is None
    assert (plan().n_views, plan().augment, plan().background) == (1, (), 7)


@pytest.mark.parametrize(
    ("settings", "names", "expected"),
    [
        ({"learning_rate": 0.5}, "rates.peak", 0.5),
        ({"schedule": "cosine"}, "rates.schedule", "cosine"),
        ({"schedule": "cosine", "warmup_epochs": 1.5}, "rates.warmup_steps", 20),
        ({"schedule": "cosine", "min_learning_rate": 1e-5}, "rates.minimum", 1e-5),
        ({"schedule": "triangular2", "cycle_epochs": 2.0}, "rates.cycle_steps", 26),
        ({"schedule": "plateau", "plateau_patience": 3}, "rates.patience", 3),
        ({"schedule": "plateau", "plateau_factor": 0.5}, "rates.factor", 0.5),
        ({"label_smoothing": 0.1}, "label_smoothing", 0.1),
        ({"ema_decay": 0.9}, "ema_decay", 0.9),
        ({"augment": ("flip", "mixup")}, "n_views", 2),
        ({"augment": ("flip", "mixup")}, "augment", ("mixup",)),
        ({"seed": 9}, "seed", 9),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_setting_reaches_the_plan(settings: dict[str, Any], names: str, expected: Any) -> None:
    def find(planned: Any) -> Any:
        for name in names.split("."):
            planned = getattr(planned, name)
        return planned

    assert find(plan(**settings)) == expected
    assert find(plan()) != expected


def test_balanced_classes_weigh_the_same_together() -> None:
    weights = plan(class_weights="balanced").class_weights
    # N / (K * count), as scikit-learn's "balanced"; a class without rows as one of one row.
    assert weights == pytest.approx((100 / 240, 100 / 120, 100 / 40, 100 / 4))


def test_deeper_stages_learn_faster(toy_classifier) -> None:
    planned = plan_phase(toy_classifier, "finetune", ("stem", "conv2"))
    apply_plan(toy_classifier, planned)
    assert plan_layer_decay(1.0, toy_classifier) == {}
    factors = plan_layer_decay(0.5, toy_classifier)
    found = {path.split("/")[-2]: fraction for path, fraction in factors.items()}
    assert found == {"stem_conv": 0.25, "conv2_conv": 0.5, "conv2_side_conv": 0.5}
