"""Every field of a configuration, commented once.

Other files start from `get_config()` here and change what differs. Fields are
set on the command line as `--config.sft.num_epochs=3`; a misspelt one is an
error that names the nearest.
"""

import ml_collections
from ml_collections import config_dict

from rlhf_jax.study import configs


def optimizer(**overrides) -> ml_collections.ConfigDict:
  """AdamW; used by sft, reward_model and policy alike."""
  c = config_dict.create(
      peak_lr=1e-3,
      warmup_steps=20,
      decay='cosine',  # constant, linear or cosine, after the warm-up
      end_lr_fraction=0.0,  # of peak_lr, reached at the last step
      weight_decay=0.0,  # decoupled, on matrices only
      max_grad_norm=1.0,  # global norm, per model
      b2=0.999,
      eps=1e-8,
  )
  c.update(overrides)
  return c


def model(**overrides) -> ml_collections.ConfigDict:
  """A decoder-only transformer; the tokenizer sets its vocabulary."""
  c = config_dict.create(
      num_layers=2,
      width=64,
      num_heads=4,
      num_kv_heads=4,  # fewer than num_heads: grouped-query attention
      head_dim=16,
      mlp_width=128,
      rope_theta=10_000.0,
      scan_layers=False,  # scan compiles faster, unrolled runs faster on CPU
      # What a layer keeps for its gradient, which computes the rest again: none
      # (keeps all), products (outputs of projections) or full (its input alone)
      remat='none',
      attention='auto',  # by a kernel of the accelerator's; or plain
      dtype='float32',  # of matrix products; or bfloat16
  )
  c.update(overrides)
  return c


def checkpoint(**overrides) -> ml_collections.ConfigDict:
  """In place of `model` where `init` names a checkpoint, which tells the rest."""
  c = config_dict.create(
      scan_layers=True,
      remat='none',  # none, products or full
      attention='auto',  # or plain
      dtype='float32',  # of matrix products; or bfloat16
  )
  c.update(overrides)
  return c


def train(**overrides) -> ml_collections.ConfigDict:
  """Which parameters are trained; fields that this `how` does not use stay 0."""
  c = config_dict.create(
      how='full',  # full, last_n or lora; sft: or none; reward_model: or probe
      last_n=0,  # last_n: layers from the top, with final norm and unembedding
      rank=0,  # lora: r
      alpha=0.0,  # lora: adapters count alpha / rank
      targets='',  # lora: regular expression of kernels: 'attn/(q|v)/kernel'
  )
  c.update(overrides)
  return c


def train_reward(**overrides) -> ml_collections.ConfigDict:
  """`train`, or a probe: a head alone, on states of a frozen trunk."""
  c = train()
  c.update(
      layer=0,  # probe: whose states, counted from the embedding
      pooling='',  # probe: mean or last, over the response
      evaluator_layer=0,  # probe: `layer` of evaluators; 0 for the same
      hidden_width=0,  # probe: of its hidden layer; 0 for a linear one
  )
  c.update(overrides)
  return c


def get_config() -> ml_collections.ConfigDict:
  """The fields all configurations share, with the world's defaults."""
  c = ml_collections.ConfigDict()

  # -- The study. One seed is one whole repetition: data, SFT policy, reward
  # models, evaluators and frontiers.
  c.seeds = (0,)
  c.policy_seeds = (0,)  # the seeds for which policies are trained as well
  c.seed = 0  # of the stage at hand; the launcher runs through `seeds`
  # Of devices: copies of the parameters, parts of them, parts of every layer; -1,
  # once, for all devices that are left. It changes no result but by rounding.
  c.mesh = config_dict.create(data=1, fsdp=1, tensor=1)
  # Regimes: the exact frontiers again, with some fields changed (see `regime`).
  c.regimes = ml_collections.ConfigDict()
  c.regime = ''  # of the stage at hand; '' is the study itself
  c.regime_methods = ('raw', 'lsc')  # those of `methods` measured in a regime
  c.stages = (  # what launch.py runs; each needs the ones before it
      'data',
      'sft',
      'reward_model',
      'references',
      'tables',
      'policy',
      'best_of_k',
      'evaluate',
      'analysis',
      'figures',
  )
  # Reward models to learn, and the targets a policy can be aligned to: the
  # rewards that make up each.
  c.rewards = ('helpful', 'harmless')
  c.properties = config_dict.create(
      helpful=('helpful',),
      harmless=('harmless',),
      both=('helpful', 'harmless'),
  )
  # What scores each reward: learned (a reward model), gold (the annotators' own
  # log-odds, in the world), or MODULE:NAME, a function of (prompt_tokens,
  # prompt_mask, response_tokens, response_mask) -> [b]; and a factor on it.
  c.scorers = config_dict.create(helpful='learned', harmless='learned')
  c.reward_scales = config_dict.create(helpful=1.0, harmless=1.0)
  # Modules that register the properties of the world that are not built in.
  c.property_modules = ()
  # Held-out evaluators to learn beside the reward models: evaluator (of the same
  # kind), second_evaluator (another read-out); each sees pairs of its own.
  c.judges = ('evaluator',)
  # How rewards become one utility: a transform of each, then an aggregate, by
  # the names in rlhf_jax/rewards (transforms.py, aggregate.py, logic.py). A new
  # transform is one line here.
  c.methods = ml_collections.ConfigDict()
  c.methods.raw = method('identity', 'weighted_sum')
  c.methods.lsc = method('log_sigmoid_centered', 'logical_and')

  # -- Data.
  c.data = config_dict.create(
      # world (embedded), hh (Anthropic's files), hub (the same, downloaded to
      # path where they are missing; the extra [hub]) or jsonl
      source='world',
      # Folder of the files; see the README's "Your own comparisons".
      path='',
      # hh: subset folder of each reward; jsonl: file name of each reward.
      files=config_dict.create(helpful='', harmless=''),
      # jsonl: file of ratings of each reward, where reward_model.link needs them.
      rating_files=config_dict.create(helpful='', harmless=''),
      hh_split='train',  # hh: SUBSET/{train,test}.jsonl.gz
      # Whose judgements a reward is learned from, by reward: the annotator tags
      # of rows; all of them for a reward not named.
      annotators=ml_collections.ConfigDict(),
      tokenizer='word',  # word (the world's), byte or pretrained
      pretrained='',  # of tokenizer=pretrained: the model's folder
      # How dialogues become texts: '' as they are (word, byte), own (the chat
      # template of the pretrained model) or hh (the plain form of the data).
      template='',
      system='',  # template=own: the system prompt; '' for the template's own
      max_prompt_tokens=4,  # longer prompts lose their beginning
      max_response_tokens=5,  # longer responses are dropped; EOS counts
      max_bad_fraction=0.01,  # of rows malformed or useless; above: an error
      max_dropped_fraction=0.05,  # of rows with too long a response
      test_fraction=0.2,  # of the prompts of each role, held out (hh, jsonl)
  )
  c.world = config_dict.create(
      max_moves=4,  # longest response; 4 has 7,380 responses, 5 has 66,429
      heterogeneity=1.0,  # exponent on annotators' spread over prompts
      cue_scale=1.0,  # annotators' reliance on lists, length and hedges
      lazy_rate=0.1,  # share of labels given by looks alone
      alignment=0.0,  # share of gold helpfulness added to gold harmlessness
      cue_mode='default',  # who is swayed by looks: default, equal or reversed
      tie_band=0.5,  # log-odds below which annotators call a tie (link: ties)
      num_demonstrations=40_000,
      num_pairs=10_000,  # for the reward model, and as many for the evaluator
      # On held-out prompts, to test; as many on training prompts, to calibrate.
      num_test_pairs=2_000,
      num_ratings=10_000,  # for each role, where reward_model.link needs them
  )

  # -- Supervised fine-tuning: the reference policy.
  c.sft = config_dict.create(
      init='',  # '': random weights; or a checkpoint's folder
      lm=model(),  # of random weights; with a checkpoint, checkpoint()
      # Of a checkpoint's parameters; bfloat16, half the memory, if they stay
      # frozen.
      param_dtype='float32',
      train=train(),  # how=none: the checkpoint is the reference policy
      num_microbatches=1,  # parts of a batch, one at a time, to save memory
      chunk_size=0,  # tokens whose scores exist at a time; 0: all of a batch
      num_epochs=6,
      batch_size=512,
      optim=optimizer(peak_lr=2e-3),
      checkpoint_every=200,  # steps
  )
  # One distribution for the policy that samples, the policy that learns and
  # the reference policy alike.
  c.sampling = config_dict.create(
      temperature=1.0,
      max_tokens=0,  # of a response, EOS included; 0: data.max_response_tokens
  )

  # -- Reward models, and the held-out evaluators that judge policies.
  c.reward_model = config_dict.create(
      reward='helpful',  # which of `rewards`; the launcher runs through them
      role='reward_model',  # or one of `judges`: a model on pairs of its own
      init='',  # as sft.init; or sft: the reference policy
      lm=model(width=32, num_heads=4, num_kv_heads=4, head_dim=8, mlp_width=64),
      param_dtype='float32',  # as sft.param_dtype
      train=train_reward(),
      # sum: over response tokens; last: at EOS; norm: at EOS, after a final
      # norm, so bounded. The read-out decides how much there is to gain.
      # '' for a probe, which has a pooling instead.
      readout='sum',
      second_readout='norm',  # of the second_evaluator
      # The likelihood it is learned by; names in rewards/links.py.
      link='bradley_terry',
      # none, temperature (T of held-out log-loss, folded into the head; for
      # links read by log_sigmoid_centered) or isotonic (a curve, for the
      # transform log_isotonic); fitted to pairs of the split `calibration`.
      calibration='none',
      # Longer lowers the training loss and raises the held-out one.
      num_epochs=3,
      batch_size=128,
      num_microbatches=1,  # as sft.num_microbatches
      margin=0.0,  # by which chosen must exceed rejected; 0: Bradley-Terry
      center_coef=0.0,  # weight of E[(r+ + r-)^2]
      optim=optimizer(peak_lr=1e-3, weight_decay=1e-2),
      # Rate of the link's own numbers (thresholds, noise), over optim.peak_lr:
      # Adam moves a lone scalar by no more than the sum of its rates.
      link_lr_factor=30.0,
      checkpoint_every=100,
  )

  # -- Reference rewards r_ref(x); a method names one of `specs`.
  c.references = config_dict.create(
      num_samples=64,  # SFT samples a prompt
      batch_size=48,  # prompts at once
      specs=config_dict.create(default=reference()),
      # learned_quantile: the model of the prompt, from the SFT policy's weights
      regression=config_dict.create(
          num_steps=300,
          batch_size=64,  # prompts, each with all its samples
          optim=optimizer(peak_lr=1e-3),
      ),
  )

  # -- Policies.
  c.policy = config_dict.create(
      property='both',  # of the run at hand; the launcher runs through `sweep`
      method='lsc',
      # ppo, rloo, grpo, grpo_std, reinforce, rebel, dpo, ipo, qrpo,
      # qrpo_quantile, raft, rejection, or MODULE:NAME of your own
      learner='ppo',
      # One nat of KL costs this much utility; of one run, see `sweep` for many.
      kl_coef=0.3,
      # (property, method, learner, kl_coefs) of the runs to make.
      sweep=(),
      train=train(),  # of the policy, and of its value function
      chunk_size=0,  # tokens whose scores exist at a time; 0: all of a batch
      export=False,  # writes the policy as a Hugging Face folder as well
      num_steps=320,
      prompts_per_step=64,
      samples_per_prompt=8,
      checkpoint_every=100,
      optim=optimizer(
          peak_lr=1e-3,
          warmup_steps=0,
          decay='linear',
          end_lr_fraction=0.0,
          eps=1e-5,
      ),
      num_epochs=1,  # over each rollout
      num_minibatches=4,
      num_microbatches=1,  # parts of a minibatch, one at a time, to save memory
      clip_eps=0.2,  # of the probability ratio
      value_clip_eps=0.0,  # of the value update; 0: unclipped
      vf_coef=0.5,
      entropy_coef=0.0,
      gamma=1.0,  # discount a token
      gae_lambda=1.0,
      whiten_advantages=True,  # over the rollout, never within a prompt
      kl_target=0.0,  # nats a response to steer kl_coef to; 0: fixed
      kl_horizon=10_000.0,  # responses over which it is steered
      # Step size of the weights where they are the multipliers of the aggregate
      # lagrangian; 0: fixed.
      multiplier_lr=0.0,
      # Subtracted: from every raw reward before its transform, or from the
      # utility after; coef for each token of the response.
      penalty=config_dict.create(
          kind='none',  # or length
          how='raw',  # or utility
          coef=0.0,
      ),
  )

  # -- Best-of-k: every k from one set of SFT samples, by order statistics.
  c.best_of_k = config_dict.create(
      num_samples=256,  # a prompt
      ks=(1, 2, 4, 8, 16, 32, 64, 128),
      methods=(),  # those of `methods` it is measured of; empty: all
  )

  # -- Responses to held-out prompts, where all cannot be listed: text.
  c.samples = config_dict.create(
      of='sft',  # or policy; the launcher runs through both
      num_samples=16,  # of the SFT policy, a prompt: best-of-k, offline frontier
      num_policy_samples=4,  # of each trained policy
  )

  # A language model that compares them in pairs, in both orders (stage judge).
  c.judge = config_dict.create(
      # sft, the reference policy; or a checkpoint's folder, with the tokenizer of
      # data.
      init='sft',
      lm=checkpoint(),
      num_pairs=0,  # a prompt, policy and reward; 0: no judge
      max_tokens=768,  # of a question; pairs with longer ones are left out
      batch_size=8,
  )

  # -- Evaluation and figures.
  c.evaluate = config_dict.create(
      property='helpful',  # at hand; the launcher runs through `properties`
      # KL values, in nats, at which exact frontiers are evaluated.
      kls=(0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0),
      matched_kl=2.0,  # where tables, figures and report compare methods
      num_responses=3,  # drawn for each prompt and method, for the report
      num_joint_samples=2_000,  # points behind the joint distribution
  )
  # Calibration, dependence of judgements, and what transforms do to gradients.
  c.analysis = config_dict.create(
      property='both',  # of two rewards, whose judgements may depend
      method='lsc',  # whose references say what good is
      # Correlations of a Gaussian copula between the two judgements of one
      # response, and how often each response is judged for the test.
      rhos=(-0.8, -0.4, 0.0, 0.4, 0.8),
      num_repeats=(2, 5, 20),
      num_responses=16,  # SFT responses a prompt
  )
  return c


def method(
    transform: str,
    aggregate: str,
    *,
    aggregate_options=None,
    weights=None,
    per_reward=None,
    reference='default',
    properties=(),
    exact=True,
    **options,
):
  """One way to turn rewards into a utility.

  Names are those of rlhf_jax/rewards, or MODULE:NAME for one that a module of
  your own registers.

  Args:
    transform: of every reward.
    aggregate: of the transformed rewards.
    aggregate_options: of the aggregate.
    weights: of rewards in the aggregate, by name; 1 for those not named.
    per_reward: what differs for a reward, by name: transform, options, negated.
    reference: which of references.specs is r_ref(x).
    properties: the only properties it applies to; empty: all.
    exact: whether it has an optimum to compute; False for what depends on the
      whole batch, which can only be trained.
    **options: of the transform.
  """
  return config_dict.create(
      transform=transform,
      options=config_dict.create(**options),
      aggregate=aggregate,
      aggregate_options=config_dict.create(**(aggregate_options or {})),
      weights=config_dict.create(**(weights or {})),
      per_reward=ml_collections.ConfigDict(per_reward or {}),
      reference=reference,
      properties=tuple(properties),
      exact=exact,
  )


def reference(**overrides) -> ml_collections.ConfigDict:
  """r_ref(x), by an estimator of rewards/references.py."""
  c = config_dict.create(
      # empirical_quantile, gaussian_quantile, pooled_quantile, mean, canned,
      # dataset_response, learned_quantile or constant; MODULE:NAME of your own
      estimator='empirical_quantile',
      q=0.85,  # of the SFT samples' rewards, for the quantiles
      # canned: for each reward, the response whose reward is the reference
      canned=ml_collections.ConfigDict(),
      constant=0.0,  # for constant
      per_reward=ml_collections.ConfigDict(),  # reward -> fields that differ
  )
  c.update(overrides)
  return c


def policy_runs(c: ml_collections.ConfigDict) -> list[dict]:
  """The policy runs that a config lists, one dict of overrides each."""
  return [
      {'seed': seed} | {f'policy.{k}': v for k, v in policy.items()}
      for seed in c.policy_seeds
      for policy in configs.policies(c)
  ]


def add_property(
    c: ml_collections.ConfigDict,
    name: str,
    *,
    scorer: str = 'learned',
    module: str = '',
) -> None:
  """Adds a reward, and a property of the same name, to a study.

  Args:
    c: the config; `c.properties` gains the reward alone, under its name.
    name: of a property of the world (rlhf_jax/data/world/properties), or of your data.
    scorer: learned, gold, or MODULE:NAME of a rule; see `scorers`.
    module: that registers the property of the world, if it is not built in.
  """
  c.rewards += (name,)
  c.properties[name] = (name,)
  c.scorers[name] = scorer
  c.reward_scales[name] = 1.0
  if module:
    c.property_modules += (module,)


def regime(**overrides) -> ml_collections.ConfigDict:
  """One regime: dotted fields, written with __ for the dot, and their values.

    c.regimes.norm = base.regime(reward_model__readout='norm')

  Prompts and the SFT policy are those of the study, so only fields of what
  follows them can be changed; methods and properties may be replaced whole. Only
  exact frontiers are made of it: fields of policies, judges, best-of-k and
  analysis would change nothing, and are refused.
  """
  c = ml_collections.ConfigDict()
  for name, value in overrides.items():
    c[name] = value
  return c
