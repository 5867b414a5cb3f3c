"""How much each neuron and each layer matters: statistics of a calibration pass, and the scores
made of them.
"""
