"""Sampling speed: tokens drawn per second, prefill included.

python benchmarks/rollout.py --model=tiny --batches=1,8,32 --new=64
python benchmarks/rollout.py --model=models/smollm2 --batches=8,32 --new=32
python benchmarks/rollout.py --model=models/smollm2 --batches=8 --new=32 --samples=16

Responses have exactly `new` tokens, drawn at temperature 1 from the whole
vocabulary, with the log-probability of each. With `samples` each prompt is
answered so often, from one prefill.
"""

import functools

from absl import app, flags
import jax
import jax.numpy as jnp
import measure

from rlhf_jax import sampling as sampling_lib
from rlhf_jax.types import SamplingConfig

_MODEL = flags.DEFINE_string('model', 'tiny', "tiny, or a model's folder.")
_DTYPES = flags.DEFINE_list('dtypes', ['float32', 'bfloat16'], 'Of products.')
_BATCHES = flags.DEFINE_list('batches', ['1', '8', '32'], 'Prompts at a time.')
_SAMPLES = flags.DEFINE_integer('samples', 1, 'Responses to each prompt.')
_PROMPT = flags.DEFINE_integer('prompt', 64, 'Tokens of a prompt.')
_NEW = flags.DEFINE_integer('new', 64, 'Tokens of a response.')
_REPS = flags.DEFINE_integer('reps', 3, 'Timed calls of each kind.')


def main(_):
  sampling = SamplingConfig(
      num_tokens=_NEW.value,
      temperature=1.0,
      eos_id=measure.EOS_ID,
      pad_id=measure.PAD_ID,
      min_tokens=_NEW.value - 1,  # EOS may be the last, and no sooner
  )
  num_samples = _SAMPLES.value
  for dtype in _DTYPES.value:
    params, cfg = measure.model(_MODEL.value, dtype, frozen=True)

    @jax.jit
    def rollout(params, tokens, mask, step, cfg=cfg):
      ids = jnp.arange(tokens.shape[0])
      keys = sampling_lib.sample_keys(0, step, ids, num_samples)
      how = dict(sampling=sampling, num_samples=num_samples)
      return sampling_lib.sample(params, tokens, mask, keys, cfg, **how)

    for batch in map(int, _BATCHES.value):
      tokens, mask = measure.prompts(cfg, batch, _PROMPT.value)
      call = functools.partial(rollout, params, tokens, mask)
      first = call(0)
      assert first.response_mask.all() and jnp.isfinite(first.logprobs).all()
      found = measure.seconds(call, _REPS.value)
      drawn = batch * num_samples * _NEW.value
      measure.emit(
          bench='rollout',
          model=_MODEL.value,
          dtype=dtype,
          batch=batch,
          samples=num_samples,
          prompt=_PROMPT.value,
          new=_NEW.value,
          tok_s=measure.spread([drawn / s for s in found]),
      )


if __name__ == '__main__':
  app.run(main)
