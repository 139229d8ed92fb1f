"""The texts that a run of pvq looks at, in windows of tokens."""

from typing import Any

import numpy as np

from jaxlab import data
from jaxlab.errors import InputError
from jaxlab.models import Model, windows


def calibration_tuning_test(config: Any, model: Model) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Calibration, tuning and test windows, each with the beginning-of-text token where the model wants one.

    Args:
      config: of the pvq recipe.
      model: whose tokens they are.

    Raises:
      InputError: a text that is not there, or too short.
    """
    bos = model.cfg.bos_id if model.cfg.add_bos else None
    calibration = data.calibration_windows(
        data.token_ids(config.calib, model.tokenizer),
        context=config.calib_context - (bos is not None),
        count=config.calib_windows + config.tuning_windows,
        seed=config.seed,
    )
    if bos is not None:
        calibration = np.pad(calibration, ((0, 0), (1, 0)), constant_values=bos)
    test = windows(data.token_ids(config.text, model.tokenizer), config.context, bos_id=bos)
    if config.windows > len(test):
        raise InputError(
            f"windows is {config.windows}, but {config.text} holds {len(test)} of {config.context} tokens"
        )
    chosen, further = np.split(calibration, [config.calib_windows])
    return chosen, further, test[: config.windows or None]
