#!/bin/sh
# Makes the secret that the pods of rollout.yaml and reward.yaml wait for: a token of the running head node, good for USES pods
# in all. Run it again for more; pods that have joined do not need it any more. The token is never shown.
set -eu
uses=${1:-64}
kubectl -n cohort exec job/cohort-head -c head -- cluster token /runs/run --uses "$uses" --expires 7d |
    kubectl -n cohort create secret generic cohort-token --from-file=token=/dev/stdin --dry-run=client -o yaml |
    kubectl apply -f -
