"""What a model can do besides predicting text: answers to held-out questions and their scores, instructions followed, others' tasks."""
