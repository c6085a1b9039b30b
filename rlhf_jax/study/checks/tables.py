"""Bounds and choices of the fields of a config, and when one has no effect.

A path is dotted; `*` in it stands for every name in a section.
"""

from rlhf_jax.models import heads, probe

POSITIVE = (
    'reward_scales.*',
    'sampling.temperature',
    'sft.batch_size',
    'sft.checkpoint_every',
    'sft.optim.peak_lr',
    'sft.num_microbatches',
    'reward_model.num_epochs',
    'reward_model.batch_size',
    'reward_model.num_microbatches',
    'reward_model.checkpoint_every',
    'reward_model.optim.peak_lr',
    'reward_model.link_lr_factor',
    'references.num_samples',
    'references.batch_size',
    'policy.num_steps',
    'policy.prompts_per_step',
    'policy.samples_per_prompt',
    'policy.num_epochs',
    'policy.num_minibatches',
    'policy.num_microbatches',
    'policy.checkpoint_every',
    'policy.clip_eps',
    'policy.optim.peak_lr',
    'policy.kl_horizon',
    'best_of_k.num_samples',
)

NOT_NEGATIVE = (
    'sft.chunk_size',
    'policy.chunk_size',
    'sft.train.last_n',
    'sft.train.rank',
    'sft.train.alpha',
    'reward_model.train.last_n',
    'reward_model.train.rank',
    'reward_model.train.alpha',
    'reward_model.train.layer',
    'reward_model.train.evaluator_layer',
    'reward_model.train.hidden_width',
    'policy.train.last_n',
    'policy.train.rank',
    'policy.train.alpha',
)

# In [0, 1].
SHARES = (
    'data.max_bad_fraction',
    'data.max_dropped_fraction',
    'data.test_fraction',
)

CALIBRATIONS = ('none', 'temperature', 'isotonic')
_DTYPES = ('float32', 'bfloat16')

CHOICES = {
    'sft.train.how': ('full', 'last_n', 'lora', 'none'),
    'reward_model.train.how': ('full', 'last_n', 'lora', 'probe'),
    'policy.train.how': ('full', 'last_n', 'lora'),
    'reward_model.train.pooling': ('', *probe.POOLINGS),  # '' without a probe
    'sft.param_dtype': _DTYPES,
    'reward_model.param_dtype': _DTYPES,
    'reward_model.calibration': CALIBRATIONS,
    'reward_model.second_readout': tuple(heads.READOUTS),
    'samples.of': ('sft', 'policy'),
}

# Lists of names, or sections, whose names must be among those of another.
NAMES = {
    'properties.*': 'rewards',
    'scorers': 'rewards',
    'reward_scales': 'rewards',
    'references.specs.*.per_reward': 'rewards',
    'methods.*.weights': 'rewards',
    'methods.*.per_reward': 'rewards',
    'methods.*.properties': 'properties',
    'best_of_k.methods': 'methods',
}
# Those that a regime, which has fewer rewards and properties, need not narrow.
SHARED_WITH_REGIMES = (
    'scorers',
    'reward_scales',
    'references.specs.*.per_reward',
    'methods.*.weights',
    'methods.*.per_reward',
    'methods.*.properties',
    'best_of_k.methods',
)

# Fields of a section `train` that each way of training needs; others have no
# effect with it, and those in OPTIONAL may be 0.
TRAIN_FIELDS = {
    'last_n': ('last_n',),
    'lora': ('rank', 'alpha', 'targets'),
    'probe': ('layer', 'pooling', 'evaluator_layer', 'hidden_width'),
}
OPTIONAL = ('evaluator_layer', 'hidden_width')

# (when, why, {path: the value that it must then have}); the reason is filled in
# from the config.
UNUSED = (
    (
        lambda c: c.data.tokenizer != 'pretrained',
        'data.tokenizer={c.data.tokenizer}',
        {'data.pretrained': ''},
    ),
    (
        lambda c: c.data.template != 'own',
        'data.template={c.data.template!r}',
        {'data.system': ''},
    ),
    (
        lambda c: not c.sft.init,
        'sft.init={c.sft.init!r}',
        {'sft.param_dtype': 'float32'},
    ),
    (
        lambda c: c.reward_model.init in ('', 'sft'),
        'reward_model.init={c.reward_model.init!r}',
        {'reward_model.param_dtype': 'float32'},
    ),
    (
        lambda c: c.sft.train.how == 'none',
        'sft.train.how=none',
        {'sft.num_epochs': 0, 'sft.num_microbatches': 1, 'sft.chunk_size': 0},
    ),
    (
        lambda c: c.reward_model.train.how == 'probe',
        'reward_model.train.how=probe',
        {
            'reward_model.readout': '',
            'reward_model.margin': 0.0,
            'reward_model.center_coef': 0.0,
            'reward_model.num_microbatches': 1,
        },
    ),
)
