"""What the network is taught by: one pure function a term, and `total.total_loss`, which adds them up.

| file | terms |
|---|---|
| `metric` | multi-similarity of the global descriptors; which photos are compared |
| `local` | mutual nearest neighbours of the local features |
| `regions` | SAL, CEL and SCEL; what teaches the reliability branch |
| `correspondences` | Algorithm 1 and the pseudo-correspondence loss |
| `released` | the released code's forms where ours differ, to check against; nothing is trained with them |

Sources: FoL (arXiv:2504.09881), the code it was released with (chenshunpeng/FoL@e930a76), and for FoL++ section 10.3 of the
specification. README.md of `fol_model` says which is followed where they disagree.
"""
