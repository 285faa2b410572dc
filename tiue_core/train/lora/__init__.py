"""LoRA for a one-pass student, from a handful of pictures: three ways, one interface.

    transfer   an ordinary LoRA of the teacher, put on the student as it is
    one-pass   then distilled through the student's one pass, by prompts alone (VSD)
    paired     or regressed onto what the teacher with that LoRA paints from the same noise

`docs/lora.md` has the table that chose the default.
"""
