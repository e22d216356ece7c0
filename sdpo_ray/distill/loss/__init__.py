"""The SDPO loss: advantages, teachers, drift, and one optimizer step."""
