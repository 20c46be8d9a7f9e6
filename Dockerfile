# The course in a container: docker build -t llm-measured . && docker run -p 8888:8888 llm-measured
FROM python:3.11-slim
RUN useradd --create-home --uid 1000 student
WORKDIR /home/student/llm-measured
COPY requirements.txt ./
# the same pins as everywhere; the second index has the same torch without CUDA, which is 2 GB smaller
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -r requirements.txt
COPY --chown=student . .
RUN pip install --no-cache-dir --no-deps -e . && chown student .
USER student
# models and data come into the image: it needs no network afterwards
RUN python -m utils.course --fetch
EXPOSE 8888
CMD ["jupyter", "lab", "notebooks", "--ip=0.0.0.0", "--no-browser"]
