"""Letting a trained network name pictures: any number of them, in constant memory, or the run's own unseen ones.

``choose`` finds the checkpoint, ``sources`` the pictures, ``classify`` loads the network and names, ``results`` holds
and writes what came out. Only ``classify`` imports torch.
"""
