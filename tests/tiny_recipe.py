"""A recipe that trains the tiny model on rows that ship, in a second or two."""

TINY = """
name: tiny
model: {id: "tiny:chatml", dtype: float32}
method: lora
data:
  train: {sample: support, limit: 32}
  eval: {rows: 8}
  formatter: support
  max_length: 256
lora: {r: 4, target_modules: [q_proj, v_proj]}
training: {max_steps: 4, per_device_train_batch_size: 4, learning_rate: 1.0e-2, logging_steps: 1, save_steps: 2,
           use_cpu: true, report_to: []}
evaluation: {samples: 2, max_new_tokens: 8, batch_size: 2}
"""
