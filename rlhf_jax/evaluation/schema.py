"""Columns of the tables of an evaluation: of each NAME.csv, in order.

The stages write them, the figures and the report read them, and both name their
columns from here.
"""

_OF_POLICY = 'property method learner kl_coef seed kl'

COLUMNS = {
    name: tuple(columns.split())
    for name, columns in {
        'results': f'{_OF_POLICY} judge metric value',
        'optimality': (
            'property method learner objective kl_coef seed kl objective_share'
            ' held_out_share frontier_share gap kl_to_optimum seconds num_steps'
        ),
        'prompts': 'property method learner seed kl prompt reward judge centered',
        'prompt_values': (
            'property method learner seed kl judge metric prompt value'
        ),
        # Then one column a reward, named as the reward is.
        'joint': 'method learner seed kl',
        # Then one column a score, named SCORE/REWARD.
        'responses': 'property seed prompt method learner kl draw response text',
        'diagnostics': 'property method seed quantity decile value',
        'calibration': 'seed reward role kind bin share confidence frequency',
        'calibration_summary': (
            'seed reward role kind accuracy log_loss brier ece temperature pairs'
        ),
        'independence': (
            'seed rho num_repeats statistic p_value product observed'
            ' frechet_low frechet_high ece'
        ),
        'copula': 'seed rho method kl value',
        'regimes': f'{_OF_POLICY} judge metric value regime',
        'growth': 'seed n method kl kl_coef metric value',
        'gaussian': 'scale tail correlation method kl value',
        'transforms': 'transform centered utility slope',
        # Of a pairwise judge.
        'verdicts': (
            'prompt reward probability score flipped shown_first length'
            ' other_length'
        ),
    }.items()
}
# Last columns of `results` and `joint` where responses are sampled: a row then
# is of one prompt.
OF_PROMPT = ('prompt', 'kind')
# The tables of two stages, one file each.
EVALUATE = (
    'results',
    'optimality',
    'prompts',
    'prompt_values',
    'joint',
    'responses',
)
ANALYSIS = (
    'diagnostics',
    'calibration',
    'calibration_summary',
    'independence',
    'copula',
)
