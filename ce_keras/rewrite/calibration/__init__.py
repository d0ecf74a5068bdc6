"""Initial weights of an ensemble out of a trained model's function: `init="calibrated"`.

Chain by chain in the order of the network, on activations of the *new* network. The paths begin
with units of the model's chain (`units`). Then each linear layer is fitted by least
squares, path by path, to the model's own outputs there (`layers`): the hidden layers to
those of the path's units, the exit to the chain's output. Every fit makes up for some of the error
of those before it. No labels are needed, and nothing is trained.
"""
