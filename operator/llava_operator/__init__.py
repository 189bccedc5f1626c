"""The operator: takes LlavaFineTune resources from apply to a judged model. It knows neither torch nor the trainer."""
