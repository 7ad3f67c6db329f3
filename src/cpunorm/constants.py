"""Means and standard deviations that published networks were trained with, of R, G and B between 0 and 1: for `preprocess`.

===================  ====================================================================================================
``IMAGENET``         torchvision's and timm's models, and most others
``INCEPTION``        0.5 each: values between -1 and 1 (Inception, MobileNet and ViT of TensorFlow's origin, SigLIP)
``CLIP``             OpenAI's CLIP and its open successors
``CIFAR10``          over all values of the training pictures. (0.2023, 0.1994, 0.2010), often seen, is the mean of the pictures' own
``CIFAR100``         the same: 0.26733, 0.25644, 0.27615 with more digits
``MNIST``            one channel
===================  ====================================================================================================
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
