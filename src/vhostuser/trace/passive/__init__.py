"""The passive rules: what can be seen to be wrong by only looking on."""
