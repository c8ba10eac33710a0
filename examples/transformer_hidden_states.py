"""Pool a transformers text encoder's hidden states with GPO, and turn them into four embeddings with SetPrediction."""

import torch
from transformers import BertConfig, BertModel

from vse.aggregators import GPO, SetPrediction


def main() -> None:
    """Run both on random token ids; BertModel.from_pretrained("bert-base-uncased") gives trained weights."""
    bert = BertModel(
        BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
    ).eval()
    tokens = torch.randint(1000, 2000, (2, 9))
    mask = torch.tensor([[True] * 9, [True] * 5 + [False] * 4])  # the second caption has 5 tokens and padding

    states = bert(tokens, attention_mask=mask.long()).last_hidden_state  # (2, 9, 64)

    gpo = GPO()
    print("GPO", gpo(states, mask).embeddings.shape)  # (2, 1, 64); padding changes nothing

    slots = SetPrediction(in_dim=64, out_dim=64, position="sine")
    result = slots(states, mask, context=states[:, 0])  # around the [CLS] state
    print("SetPrediction", result.embeddings.shape)  # (2, 4, 64)
    print("attention on padding", result.attention[1, :, 5:].sum().item())  # 0.0


if __name__ == "__main__":
    main()
