"""Job of the DDS translation network; editing by scores; its evaluation and what DDS claims without training."""
