"""
Tests of kidspeech.runpod against a RunPod made of this machine: an API on loopback, pods that are a real sshd, rsync and
tmux, and a volume that is a folder with a real S3 server before it.
"""
