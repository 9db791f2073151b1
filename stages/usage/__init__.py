"""How common changes are in production inputs: `usage:` of an audit, measured without a query of the model.

A change leaves traces that can be measured: less light, more grain, unknown words. `measures` computes them for
pictures, texts, prompts and rows; `readers` does so for a task's own items, changed as its concepts change them, and
for files of production inputs; `estimate` compares the two.
"""
