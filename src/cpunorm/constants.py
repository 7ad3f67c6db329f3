"""Means and standard deviations that published networks were trained with, of R, G and B between 0 and 1: for `preprocess`.

===================  =====================================================================================================================
``IMAGENET``         torchvision's and timm's models, and most others. Source: torchvision, "Models and pre-trained weights"; timm,
                     data/constants.py, ``IMAGENET_DEFAULT_MEAN``
``INCEPTION``        0.5 each: values between -1 and 1 (Inception, MobileNet and ViT of TensorFlow's origin, SigLIP). Source: timm,
                     ``IMAGENET_INCEPTION_MEAN``
``CLIP``             OpenAI's CLIP and its open successors. Source: openai/CLIP, clip/clip.py
``CIFAR10``          over all values of the training pictures, ``np.std(data, axis=(0, 1, 2)) / 255``: 0.49139968, 0.48215841,
                     0.44653091 and 0.24703223, 0.24348513, 0.26158784, to four digits. (0.2023, 0.1994, 0.2010), often seen, is the
                     mean of the pictures' own. Source: MadryLab/robustness, issue 70
``CIFAR100``         the same: 0.50707516, 0.48654887, 0.44091784 and 0.26733429, 0.25643846, 0.27615047. (0.4867, 0.4408) and
                     (0.2675, 0.2565, 0.2761), often seen, differ in the last digit. Source: weiaicunzai/pytorch-cifar100,
                     conf/global_settings.py, ``CIFAR100_TRAIN_MEAN``
``MNIST``            one channel: 33.31002426 / 255 and 78.56748962 / 255. Source: pytorch/examples, mnist/main.py, to four digits
===================  =====================================================================================================================
"""

IMAGENET_MEAN = (0.485, 0.456, 0.406)  #: R, G, B
IMAGENET_STD = (0.229, 0.224, 0.225)  #: R, G, B
INCEPTION_MEAN = (0.5, 0.5, 0.5)  #: R, G, B
INCEPTION_STD = (0.5, 0.5, 0.5)  #: R, G, B
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  #: R, G, B
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)  #: R, G, B
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)  #: R, G, B
CIFAR10_STD = (0.2470, 0.2435, 0.2616)  #: R, G, B
CIFAR100_MEAN = (0.5071, 0.4865, 0.4409)  #: R, G, B
CIFAR100_STD = (0.2673, 0.2564, 0.2762)  #: R, G, B
MNIST_MEAN = (0.1307,)  #: one channel
MNIST_STD = (0.3081,)  #: one channel
