"""Speed of reward-model training: pairs per second, whole optimizer steps.

python benchmarks/reward_model.py --model=tiny --batch=8 --length=128

Both responses of a pair and their prompts are `length` tokens together, without
padding; the loss is Bradley-Terry's, the optimizer AdamW, its masters float32.
"""

from absl import app, flags
import jax
import jax.numpy as jnp
import measure

from rlhf_jax import programs, sharding, train_state
from rlhf_jax.models import heads
from rlhf_jax.stages import reward_model as stage
from rlhf_jax.study import reward_functions
from rlhf_jax.types import PreferenceBatch

_MODEL = flags.DEFINE_string('model', 'tiny', "tiny, or a model's folder.")
_DTYPES = flags.DEFINE_list('dtypes', ['float32', 'bfloat16'], 'Of products.')
_BATCH = flags.DEFINE_integer('batch', 8, 'Pairs of a step.')
_LENGTH = flags.DEFINE_integer('length', 128, 'Tokens of prompt and response.')
_STEPS = flags.DEFINE_integer('steps', 6, 'Timed steps.')


def main(_):
  for dtype in _DTYPES.value:
    base, cfg = measure.model(_MODEL.value, dtype, frozen=False)
    reward_fn = reward_functions.RewardFunction(lm_cfg=cfg, readout='norm')
    step = programs.jit(
        stage.make_step,
        reward_fn,
        measure.OPTIM,
        1.0,
        'bradley_terry',
        0.0,
        0.0,
        1,
        donate=(0,),
    )
    tx = stage.make_tx(measure.OPTIM, 1.0)
    params = heads.from_trunk(jax.random.key(0), base, cfg) | {'link': {}}
    del base
    half = _LENGTH.value // 2
    prompt, mask = measure.prompts(cfg, _BATCH.value, half)
    batch = PreferenceBatch(
        prompt_tokens=prompt,
        prompt_mask=mask,
        chosen_tokens=prompt[::-1],
        chosen_mask=mask,
        rejected_tokens=prompt + 1,
        rejected_mask=mask,
        valid=jnp.ones(_BATCH.value, bool),
    )
    state = sharding.commit(train_state.init_train_state(params, tx))
    holder = {'state': state}
    del state
    del params

    def call(i, step=step, batch=batch, holder=holder):
      del i
      holder['state'], metrics = step(holder['state'], {}, batch)
      return metrics

    found = measure.seconds(call, _STEPS.value)
    measure.emit(
        bench='reward_model',
        model=_MODEL.value,
        dtype=dtype,
        batch=_BATCH.value,
        length=_LENGTH.value,
        pairs_s=measure.spread([_BATCH.value / s for s in found]),
    )


if __name__ == '__main__':
  app.run(main)
