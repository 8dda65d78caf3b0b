"""Let people judge the confirmed captions of a run, beside decoys of known truth, on a page of this machine."""
