"""The shape of a language model, and all that its family does differently."""

import dataclasses

ACTIVATIONS = ('silu', 'gelu', 'gelu_tanh')
NORMS = ('rms', 'rms_offset', 'layer')
REMATS = ('none', 'products', 'full')
ATTENTIONS = ('auto', 'plain')
SCALINGS = ('linear', 'llama3', 'yarn')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
  """Rotary frequencies f of a model stretched by `factor` in length.

    linear: f / factor (Chen et al. 2023, arXiv:2306.15595)
    llama3: f / factor where the wavelength exceeds original_length /
            low_freq_factor, f where it is below original_length /
            high_freq_factor, and a blend linear in 1 / wavelength between
            (the release of Llama 3.1)
    yarn:   f / factor for planes that turn less than beta_slow times in
            original_length, f for those that turn more than beta_fast times,
            and a blend linear in the plane's index between; queries and keys
            times attention_factor (Peng et al. 2023, arXiv:2309.00071)

  Attributes:
    kind: linear, llama3 or yarn; the fields below are of the named kinds.
    factor: all.
    original_length: llama3, yarn: tokens the model was first trained on.
    low_freq_factor: llama3.
    high_freq_factor: llama3.
    beta_fast: yarn.
    beta_slow: yarn.
    attention_factor: yarn; None is 0.1 log(factor) + 1.
    truncate: yarn; the blend starts and ends at whole indices.
  """

  kind: str
  factor: float
  original_length: int | None = None
  low_freq_factor: float | None = None
  high_freq_factor: float | None = None
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float | None = None
  truncate: bool = True

  def __post_init__(self):
    if self.kind not in SCALINGS:
      raise ValueError(f'Unknown kind {self.kind!r}; known: {SCALINGS}.')
    if self.kind != 'linear' and self.original_length is None:
      raise ValueError(f'kind {self.kind} needs original_length.')
    if self.kind == 'llama3' and not (
        self.low_freq_factor
        and self.high_freq_factor
        and self.low_freq_factor < self.high_freq_factor
    ):
      raise ValueError('llama3 needs low_freq_factor < high_freq_factor.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LMConfig:
  """Shape of a decoder-only transformer.

  Attributes:
    vocab_size: v, rows of the embedding.
    num_layers: decoder layers.
    width: d, of the residual stream.
    num_heads: n, query heads.
    num_kv_heads: key and value heads; query head i reads i // (n / kv heads).
    head_dim: h, of one head; even.
    mlp_width: f, of the feed-forward branch.
    rope_theta: base of the rotary wavelengths.
    rope_scaling: how they are stretched; None for not at all.
    local_rope_theta: base in local layers, never stretched; None: as elsewhere.
    num_positions: rows of a learned position embedding, which then replaces
      rotary positions and bounds the length; 0 for none.
    local_layers: for each layer, whether it sees the last `window` positions
      only, its own included; () when none does.
    window: positions that a local layer sees.
    norm: rms; rms_offset, whose scale is stored less one (Gemma); or layer,
      with mean and bias (GPT-2).
    norm_eps: added to the mean square, or to the variance.
    post_norms: a norm of each branch's output as well as of its input.
    qk_norm: a norm of each query and key head, before the rotation.
    activation: silu, gelu (exact) or gelu_tanh, of the feed-forward branch.
    gated_mlp: down(activation(gate(x)) * up(x)), not down(activation(up(x))).
    qkv_bias: queries, keys and values have a bias.
    out_bias: the attention's output has a bias.
    mlp_bias: the feed-forward products have biases.
    query_scalar: s in the scores q k^T / sqrt(s); None is head_dim.
    attn_softcap: c, scores become c tanh(score / c); None for no cap.
    logit_softcap: the same for the logits.
    scale_embeddings: embeddings are multiplied by sqrt(d).
    tied_embeddings: the unembedding is the transposed embedding.
    final_norm: hidden states pass through a last norm.
    lora_scale: factor on the product of the adapters, where there are any.
    scan_layers: run the layers by lax.scan (compile time flat in depth) rather
      than a Python loop (faster on CPU); the parameters are the same.
    remat: what a layer keeps for its gradient, the rest being computed again:
      none, which keeps all that the gradient reads; products, the outputs of its
      projections and of attention (cuDNN's is computed again); or full, which
      keeps its input alone.
    attention: over whole rows: auto, by a kernel where the accelerator has one for
      this model; or plain, never.
    dtype: of the inputs of matrix products; they accumulate in float32.
  """

  vocab_size: int
  num_layers: int
  width: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_width: int
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  local_rope_theta: float | None = None
  num_positions: int = 0
  local_layers: tuple[bool, ...] = ()
  window: int | None = None
  norm: str = 'rms'
  norm_eps: float = 1e-6
  post_norms: bool = False
  qk_norm: bool = False
  activation: str = 'silu'
  gated_mlp: bool = True
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  query_scalar: float | None = None
  attn_softcap: float | None = None
  logit_softcap: float | None = None
  scale_embeddings: bool = False
  tied_embeddings: bool = True
  final_norm: bool = True
  lora_scale: float = 1.0
  scan_layers: bool = False
  remat: str = 'none'
  attention: str = 'auto'
  dtype: str = 'float32'

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
          f'num_heads ({self.num_heads}) must be a multiple of num_kv_heads'
          f' ({self.num_kv_heads}).'
      )
    if self.head_dim % 2:
      raise ValueError(f'head_dim must be even, got {self.head_dim}.')
    if self.dtype not in ('float32', 'bfloat16'):
      raise ValueError(f'dtype is float32 or bfloat16, got {self.dtype!r}.')
    for name, known in (
        ('remat', REMATS),
        ('attention', ATTENTIONS),
        ('norm', NORMS),
        ('activation', ACTIVATIONS),
    ):
      if (value := getattr(self, name)) not in known:
        raise ValueError(f'Unknown {name} {value!r}; known: {known}.')
    if len(self.local_layers) not in (0, self.num_layers):
      raise ValueError(
          f'local_layers has {len(self.local_layers)} entries for'
          f' {self.num_layers} layers.'
      )
    if any(self.local_layers) != (self.window is not None):
      raise ValueError(
          f'window is {self.window} and local_layers {self.local_layers}: a'
          ' window and a local layer need each other.'
      )
    if self.window is not None and self.window < 1:
      raise ValueError(f'window must be >= 1, got {self.window}.')
