"""Reference rewards r_ref(x), from SFT samples scored by the reward models.

A specification (references.specs.NAME) names an estimator and its options; each
method names the specification that it uses. All are computed here at once, from
the same samples.
"""

from collections.abc import Sequence
import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
from jaxtyping import Float
from ml_collections import ConfigDict
import numpy as np

from rlhf_jax import files, optim, programs, sharding, train_state
from rlhf_jax import metrics as metrics_lib
from rlhf_jax.data import batching
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.learners import quantile_regression
from rlhf_jax.models import heads
from rlhf_jax.rewards import references as references_lib
from rlhf_jax.study import (
    configs,
    fields,
    folders,
    models,
    parameters,
    reward_data,
    scorers,
    tokenizers,
)
from rlhf_jax.study import prompts as prompts_lib
from rlhf_jax.study import samples as samples_lib
from rlhf_jax.study.samples import Stream
from rlhf_jax.types import Progress, Rollout

FIELDS = fields.FIELDS['references']
folder = folders.references


@dataclasses.dataclass
class Prepared:
  """Inputs of the estimators for every prompt, computed when first asked for.

  Attributes:
    samples: rewards of SFT samples [x m], by reward.
    record: how inputs were made, for references.json.
  """

  config: ConfigDict
  workdir: str
  prompts: prompts_lib.Prompts
  samples: dict[str, Float[np.ndarray, 'x m']]
  record: dict = dataclasses.field(default_factory=dict)

  def need(self, name: str, reward: str, how: dict) -> Float[np.ndarray, ' x']:
    """The input `name`, one of references_lib.NEEDS, under a specification."""
    if name == 'canned':
      ids = np.arange(len(self.prompts.texts))
      texts = [how['canned'][reward]] * len(ids)
      return self._response_rewards(reward, ids, texts)
    if name == 'learned':
      return self._learned(reward, how['q'])
    return self._dataset[reward]

  def _response_rewards(
      self, reward: str, ids: np.ndarray, responses: Sequence[str]
  ) -> Float[np.ndarray, ' b']:
    """The reward of one given response to each of the prompts `ids`."""
    config, prompts = self.config, self.prompts
    tokenizer = tokenizers.make_tokenizer(config)
    longest = config.data.max_response_tokens
    tokens, mask = batching.encode_responses(
        responses, tokenizer, max_response_tokens=longest
    )
    score = scorers.load(config, self.workdir, reward)

    def score_rows(ids, tokens, mask):
      rollout = Rollout(
          prompt_tokens=jnp.asarray(prompts.tokens[ids]),
          prompt_mask=jnp.asarray(prompts.mask[ids]),
          response_tokens=jnp.asarray(tokens),
          response_mask=jnp.asarray(mask),
          logprobs=jnp.zeros(mask.shape),  # no policy drew them
      )
      return score(ids, rollout)

    size = config.references.batch_size
    return batching.map_rows(score_rows, ids, tokens, mask, size=size)

  @functools.cached_property
  def _dataset(self):
    """Rewards [x], by name, of one response to each prompt from the data.

    It is the first demonstration that fits the response array; for held-out
    prompts of the world, one that SFT is not given; for prompts without any, an
    SFT sample drawn for this alone.
    """
    config, workdir = self.config, self.workdir
    first = _first_demonstrations(config, workdir, 'demonstrations')
    unseen = {}
    if configs.responses_are_listed(config):
      unseen = _first_demonstrations(config, workdir, 'held_out_demonstrations')
    seen = len(first)
    first |= {p: r for p, r in unseen.items() if p not in first}
    texts = self.prompts.texts
    have = np.array([i for i, p in enumerate(texts) if p in first], int)
    lack = np.array([i for i, p in enumerate(texts) if p not in first], int)
    found = {r: np.zeros(len(texts), np.float32) for r in config.rewards}
    for reward, values in found.items():
      if len(have):
        responses = [first[texts[i]] for i in have]
        values[have] = self._response_rewards(reward, have, responses)
    if len(lack):
      drawn = samples_lib.sample_sft(
          config, workdir, lack, num_samples=1, stream=Stream.DATASET
      )
      for ids, _, scores in drawn:
        for reward, values in scores.items():
          found[reward][ids] = values[:, 0]
    self.record['dataset_response'] = {
        'demonstrations': len(have) - (len(first) - seen),
        'held_out_demonstrations': len(first) - seen,
        'sft_samples': len(lack),
    }
    return found

  def _learned(self, reward: str, q: float) -> Float[np.ndarray, ' x']:
    """The q-quantile of every prompt, predicted from the training prompts.

    The predictor is a scalar read-out of the SFT policy's trunk at the last
    prompt token, fitted to samples less their mean, over their standard
    deviation. The metrics of the last step are recorded.
    """
    config = self.config
    c = config.references.regression
    tokenizer = tokenizers.make_tokenizer(config)
    lm_cfg = models.model_config(config, 'sft')
    prompts, samples = self.prompts, self.samples[reward]
    ids = prompts.train_ids
    center, spread = samples[ids].mean(), max(samples[ids].std(), 1e-6)
    rows = quantile_regression.PromptRewards(
        prompt_tokens=prompts.tokens[ids],
        prompt_mask=prompts.mask[ids],
        samples=((samples[ids] - center) / spread).astype(np.float32),
        valid=np.ones(samples[ids].shape, bool),
    )
    batch_at = batching.batch_at(
        rows, batch_size=min(c.batch_size, len(ids)), seed=config.seed
    )
    optim_cfg = optim.OptimConfig(**c.optim, num_steps=c.num_steps)
    eos_id = tokenizer.eos_id
    step_fn = programs.jit(
        make_regression, lm_cfg, eos_id, optim_cfg, q, donate=(0,)
    )
    predict = programs.jit(make_prediction, lm_cfg, eos_id)
    params = heads.from_trunk(
        jax.random.key(config.seed),
        parameters.load_sft_params(config, self.workdir),
        lm_cfg,
        zero_head=True,
    )
    state = sharding.commit(
        train_state.init_train_state(params, optim.make_tx(optim_cfg))
    )
    for step in range(c.num_steps):
      state, metrics = step_fn(state, batch_at(step))
    metrics = metrics_lib.to_floats(metrics)
    metrics_lib.check_finite(
        metrics, step=c.num_steps - 1, where='references.regression'
    )
    found = predict(state.params, prompts.tokens, prompts.mask)
    self.record.setdefault('learned_quantile', {})[f'{reward}/{q:g}'] = metrics
    return center + spread * np.asarray(found)


def _first_demonstrations(config, workdir, name) -> dict[str, str]:
  """The first demonstration of each prompt that fits the response array."""
  tokenizer = tokenizers.make_tokenizer(config)
  path = os.path.join(workdir, folders.data(config), f'{name}.jsonl')
  found = {}
  for row in files.read_rows(path, 'data'):
    if row['prompt'] not in found:
      try:
        ids = batching.response_ids(
            row['response'], tokenizer, prompt=row['prompt']
        )
      except tokenizer_lib.UnusableText:
        continue
      if len(ids) <= config.data.max_response_tokens:
        found[row['prompt']] = row['response']
  return found


def make_prediction(lm_cfg, eos_id):
  """Returns `predict(params, tokens, mask)`: a quantile [b] of each prompt."""

  def predict(params, tokens, mask):
    # The value before the first token of any response: of the prompt alone.
    eos = jnp.full((tokens.shape[0], 1), eos_id)
    valid = jnp.ones_like(eos, bool)
    return heads.values(params, tokens, mask, eos, valid, lm_cfg)[:, 0]

  return predict


def make_regression(lm_cfg, eos_id, optim_cfg, q):
  """Returns `step(state, batch)`, a step of quantile regression."""
  return quantile_regression.make_step(
      make_prediction(lm_cfg, eos_id), optim.make_tx(optim_cfg), q=q
  )


def _curve(config, workdir, reward) -> dict[str, np.ndarray]:
  """Knots and levels of the reward's calibration curve; {} where it has none.

  The knots are scaled as the reward is.
  """
  learned = configs.is_learned(config, reward)
  if config.reward_model.calibration != 'isotonic' or not learned:
    return {}
  results = reward_data.results(config, workdir, reward, 'reward_model')
  found = results['calibration']
  scale = config.reward_scales.get(reward, 1.0)
  return {
      'knots': scale * np.array(found['knots'], np.float32),
      'levels': np.array(found['levels'], np.float32),
  }


def run(config: ConfigDict, workdir: str, progress: Progress) -> None:
  """Writes REWARD.npz for every reward, and references.json.

  REWARD.npz: samples [x m], rewards of the SFT samples of every prompt; ref/SPEC
  [x] for every specification; knots [j] and levels [j] where the reward is
  calibrated by a curve. `references_lib.reference_of` reads it. references.json
  holds the estimator and the mean of each, and `below`: the share of SFT
  samples at or below r_ref, on training and on held-out prompts.
  """
  out = os.path.join(workdir, folder(config))
  prompts = prompts_lib.load_prompts(
      config, workdir, tokenizers.make_tokenizer(config)
  )
  ids = np.arange(len(prompts.texts))
  num_samples = config.references.num_samples
  samples = {
      r: np.zeros((len(ids), num_samples), np.float32) for r in config.rewards
  }
  # Sampling text takes minutes, so that its batches are kept.
  listed = configs.responses_are_listed(config)
  batches = samples_lib.sample_sft(
      config,
      workdir,
      ids,
      num_samples=num_samples,
      stream=Stream.REFERENCES,
      progress=progress,
      kept='' if listed else os.path.join(out, 'batches'),
  )
  for rows, _, scores in batches:
    for name, score in scores.items():
      samples[name][rows] = score

  prepared = Prepared(config, workdir, prompts, samples)
  specs = {}
  for reward in config.rewards:
    arrays = {'samples': samples[reward], **_curve(config, workdir, reward)}
    for name, spec in config.references.specs.items():
      how = {**spec, **spec.per_reward.get(reward, {})}
      ref_reward = _estimate(prepared, reward, how)
      arrays[f'ref/{name}'] = ref_reward
      below = samples[reward] <= ref_reward[:, None]
      specs.setdefault(name, {})[reward] = {
          'estimator': how['estimator'],
          'q': how['q'],
          'mean': float(ref_reward.mean()),
          'below': {
              'train': float(below[prompts.train_ids].mean()),
              'held_out': float(below[prompts.eval_ids].mean()),
          },
      }
    files.write_arrays(os.path.join(out, f'{reward}.npz'), arrays)
  files.write_json(
      os.path.join(out, 'references.json'),
      {
          'num_samples': num_samples,
          'seed': config.seed,
          'specs': specs,
          **prepared.record,
      },
  )


def _estimate(
    prepared: Prepared, reward: str, how: dict
) -> Float[np.ndarray, ' x']:
  """r_ref of every prompt, under one specification of one reward."""
  name = configs.registered(how['estimator'])
  estimator = references_lib.get(name)
  options = {
      n: jnp.asarray(prepared.need(n, reward, how)) for n in estimator.needs
  }
  if 'constant' in estimator.options:
    options['constant'] = how['constant']
  samples = jnp.asarray(prepared.samples[reward])
  return np.asarray(estimator(samples, q=how['q'], **options))
