"""Hand-written sentences of the toy world: RIGHT with what they say in English, WRONG with what they should have been.

A wrong sentence differs from its right one in agreement alone: gender, case, number, definiteness, class, classifier.
"""

RIGHT = {
    "de": {
        "Ein roter Kreis ist links von einem blauen Herzen.": None,  # the order this grammar does not use
        "Ein kleiner roter Kreis.": "A small red circle.",
        "Es gibt einen gelben Stern.": "There is a yellow star.",
        "Auf dem Bild sind drei braune Bücher.": "The picture shows three brown books.",
        "Der rote Kreis ist links vom blauen Herzen.": "The red circle is to the left of the blue heart.",
        "Über einer weißen Blume ist ein schwarzes Dreieck.": "There is a black triangle above a white flower.",
        "Das große grüne Buch ist unten im Bild.": "The large green book is at the bottom of the picture.",
        "Die violette Blume ist unter dem kleinen Quadrat.": None,  # a known thing is always named by its colour
        "Von oben nach unten gibt es einen roten Kreis, eine gelbe Blume und ein blaues Buch.": (
            "From top to bottom: a red circle, a yellow flower and a blue book."
        ),
    },
    "es": {
        "Una gran estrella roja.": "A large red star.",
        "Hay tres pequeñas flores blancas.": "There are three small white flowers.",
        "El libro azul está a la izquierda del círculo marrón.": "The blue book is to the left of the brown circle.",
        "Debajo de una estrella amarilla hay un corazón negro.": "There is a black heart below a yellow star.",
        "En la imagen se ven cuatro corazones azules.": "The picture shows four blue hearts.",
        "La flor verde está en el centro de la imagen.": "The green flower is in the middle of the picture.",
        "De derecha a izquierda: un libro rojo, una flor morada y un triángulo negro.": (
            "From right to left: a red book, a purple flower and a black triangle."
        ),
    },
    "fr": {
        "Une grande étoile verte.": "A large green star.",
        "Il y a trois petits carrés marron.": "There are three small brown squares.",
        "Le livre rouge est à gauche de l'étoile bleue.": "The red book is to the left of the blue star.",
        "Au-dessus d'une fleur blanche, il y a un cœur violet.": "There is a purple heart above a white flower.",
        "L'étoile jaune est à droite du cercle noir.": "The yellow star is to the right of the black circle.",
        "La petite étoile noire est au-dessous de la grande fleur rouge.": (
            "The small black star is below the large red flower."
        ),
        "Sur l'image, on voit deux étoiles violettes.": "The picture shows two purple stars.",
    },
    "zh": {
        "一个红色的小圆形。": "A small red circle.",
        "图里有三朵白色的花。": "The picture shows three white flowers.",
        "这是两本黑色的书。": "There are two black books.",
        "蓝色的书左边有一颗黄色的星星。": "There is a yellow star to the left of a blue book.",
        "红色的圆形在绿色的正方形的上面。": "The red circle is above the green square.",
        "从左到右：一颗红色的星星、一朵紫色的花和一个黑色的心形。": (
            "From left to right: a red star, a purple flower and a black heart."
        ),
        "图的中间有一个大三角形。": None,
    },
    "ja": {
        "小さい赤い円。": "A small red circle.",
        "絵の中に白い花が三輪あります。": "The picture shows three white flowers.",
        "黒い本が二冊あります。": "There are two black books.",
        "青い本の左に黄色い星があります。": "There is a yellow star to the left of a blue book.",
        "赤い円は緑の正方形の上にあります。": "The red circle is above the green square.",
        "四つの紫のハート。": "Four purple hearts.",
        "上から下へ：赤い星、紫の花、黒い本。": "From top to bottom: a red star, a purple flower and a black book.",
    },
    "ar": {
        "توجد دائرة حمراء صغيرة.": "There is a small red circle.",
        "يوجد كتاب أسود.": "There is a black book.",
        "هناك ثلاثة كتب حمراء.": "There are three red books.",
        "في الصورة أربع نجوم صفراء كبيرة.": "The picture shows four large yellow stars.",
        "دائرتان زرقاوان صغيرتان.": "Two small blue circles.",
        "هناك قلبان أبيضان.": "There are two white hearts.",
        "المربع الأزرق على يسار النجمة الخضراء.": "The blue square is to the left of the green star.",
        "الزهرة البنية تحت المثلث البنفسجي.": "The brown flower is below the purple triangle.",
        "من اليمين إلى اليسار: دائرة حمراء وكتاب أزرق وزهرة بيضاء.": (
            "From right to left: a red circle, a blue book and a white flower."
        ),
    },
    "hi": {
        "चित्र में एक छोटा नीला वर्ग है।": "The picture shows a small blue square.",
        "यहाँ तीन हरी किताबें हैं।": "There are three green books.",
        "चार बड़े पीले तारे।": "Four large yellow stars.",
        "लाल किताब नीले तारे के ऊपर है।": "The red book is above the blue star.",
        "एक काले वृत्त के बाईं ओर एक भूरी किताब है।": "There is a brown book to the left of a black circle.",
        "सफ़ेद तारा चित्र में दाईं ओर है।": "The white star is on the right of the picture.",
        "बाएँ से दाएँ: एक हरा तारा, एक पीली किताब और एक बैंगनी दिल।": (
            "From left to right: a green star, a yellow book and a purple heart."
        ),
    },
    "sw": {
        "Kuna duara dogo jekundu.": "There is a small red circle.",
        "Kitabu cheusi kiko kushoto kwa mraba wa bluu.": "The black book is to the left of the blue square.",
        "Kuna maua meupe matatu.": "There are three white flowers.",
        "Kwenye picha kuna vitabu vidogo vinne vya kijani.": "The picture shows four small green books.",
        "Miraba mikubwa myekundu miwili.": "Two large red squares.",
        "Nyota nyeusi iko juu ya moyo wa manjano.": "The black star is above the yellow heart.",
        "Kuna nyota ndogo mbili za kahawia.": "There are two small brown stars.",
        "Ua kubwa la zambarau liko katikati ya picha.": "The large purple flower is in the middle of the picture.",
    },
    "tr": {
        "Resimde küçük kırmızı bir daire var.": "The picture shows a small red circle.",
        "Kırmızı kitap mavi çiçeğin solunda.": "The red book is to the left of the blue flower.",
        "Üç yeşil yıldız var.": "There are three green stars.",
        "İki büyük beyaz kalp.": "Two large white hearts.",
        "Siyah bir kalbin üstünde sarı bir üçgen var.": "There is a yellow triangle above a black heart.",
        "Mor kare kahverengi kitabın altında.": "The purple square is below the brown book.",
        "Soldan sağa: kırmızı bir daire, mavi bir kitap ve sarı bir çiçek.": (
            "From left to right: a red circle, a blue book and a yellow flower."
        ),
    },
    "en": {
        "A small red circle.": "There is a small red circle.",
        "There are three red books.": "Three red books.",
        "The red book is to the left of the blue star.": "The blue star is to the right of the red book.",
        "A yellow heart below a white flower.": "There is a white flower above a yellow heart.",
        "The large black square is in the middle of the picture.": "A large black square in the middle of the picture.",
        "From left to right: a red star, a blue book and a green heart.": (
            "There is a green heart to the right of a blue book. The blue book is to the right of the red star."
        ),
    },
}

WRONG = {
    "en": {
        "There are a red circle.": "There is a red circle.",
        "There is three red books.": "There are three red books.",
        "Three red book.": "Three red books.",
        "There is an blue star.": "There is a blue star.",
        "The red book are above the blue star.": "The red book is above the blue star.",
        "There is a red circles.": "There is a red circle.",
    },
    "de": {
        "Ein rote Kreis.": "Ein roter Kreis.",
        "Es gibt ein gelber Stern.": "Es gibt einen gelben Stern.",
        "Eine kleines Buch.": None,
        "Der roter Kreis ist links vom blauen Herzen.": "Der rote Kreis ist links vom blauen Herzen.",
        "Der rote Kreis ist links vom blauen Herz.": "Der rote Kreis ist links vom blauen Herzen.",
        "Die rote Blume ist über das blaue Buch.": "Die rote Blume ist über dem blauen Buch.",
        "Die rote Blume ist rechts von dem blauen Buch.": "Die rote Blume ist rechts vom blauen Buch.",
        "Links von ein rotes Buch ist eine weiße Blume.": "Links von einem roten Buch ist eine weiße Blume.",
        "Auf dem Bild ist drei braune Bücher.": "Auf dem Bild sind drei braune Bücher.",
        "Drei brauner Bücher.": "Drei braune Bücher.",
    },
    "es": {
        "Un estrella roja.": "Una estrella roja.",
        "Una grande estrella roja.": "Una gran estrella roja.",
        "Hay tres pequeños flores blancas.": "Hay tres pequeñas flores blancas.",
        "El libro azul está a la izquierda de el círculo rojo.": "El libro azul está a la izquierda del círculo rojo.",
        "La flor roja está encima del estrella negra.": "La flor roja está encima de la estrella negra.",
        "Hay cuatro corazones azul.": "Hay cuatro corazones azules.",
        "El flor rojo está debajo del libro negro.": "La flor roja está debajo del libro negro.",
    },
    "fr": {
        "Une étoile vert.": "Une étoile verte.",
        "Un grande cercle rouge.": "Un grand cercle rouge.",
        "Il y a trois carrés marrons.": "Il y a trois carrés marron.",
        "Le livre rouge est à gauche de le cercle bleu.": "Le livre rouge est à gauche du cercle bleu.",
        "Le livre rouge est à gauche du étoile bleue.": "Le livre rouge est à gauche de l'étoile bleue.",
        "La étoile jaune est à droite du cercle noir.": "L'étoile jaune est à droite du cercle noir.",
        "Le livre rouge est à gauche de l'grande étoile bleue.": None,
        "Deux fleur blanches.": "Deux fleurs blanches.",
    },
    "zh": {
        "一本红色的花。": "一朵红色的花。",
        "图里有三个黑色的书。": "图里有三本黑色的书。",
        "这是二本黑色的书。": "这是两本黑色的书。",
        "蓝色的书左边有一朵黄色的星星。": "蓝色的书左边有一颗黄色的星星。",
        "四颗红色的心形。": "四个红色的心形。",
        "图的左边有一只白色的花。": "图的左边有一朵白色的花。",
    },
    "ja": {
        "三つの赤い花。": "三輪の赤い花。",
        "黒い本が二つあります。": "黒い本が二冊あります。",
        "絵の中に赤い円が四冊あります。": "絵の中に赤い円が四つあります。",
        "緑い円があります。": "緑の円があります。",
        "紫な星は黒い円の左にあります。": "紫の星は黒い円の左にあります。",
        "小さいの赤い円。": None,
        "小さ緑の円。": None,
        "黒い本が三輪あります。": "黒い本が三冊あります。",
    },
    "ar": {
        "يوجد دائرة حمراء.": "توجد دائرة حمراء.",
        "دائرة أحمر.": "دائرة حمراء.",
        "هناك ثلاث كتب حمراء.": "هناك ثلاثة كتب حمراء.",
        "هناك ثلاثة نجوم صفراء.": "هناك ثلاث نجوم صفراء.",
        "دائرتان زرقاء.": "دائرتان زرقاوان.",
        "المربع أزرق على يسار النجمة الخضراء.": "المربع الأزرق على يسار النجمة الخضراء.",
        "الكتاب الأحمر فوق النجمة السوداء الصغير.": "الكتاب الأحمر فوق النجمة السوداء الصغيرة.",
        "هناك ثلاثة كتاب حمراء.": "هناك ثلاثة كتب حمراء.",
    },
    "hi": {
        "चित्र में एक नीली वर्ग है।": "चित्र में एक नीला वर्ग है।",
        "यहाँ तीन हरा किताबें हैं।": "यहाँ तीन हरी किताबें हैं।",
        "यहाँ तीन हरी किताबें है।": "यहाँ तीन हरी किताबें हैं।",
        "लाल किताब नीला तारा के ऊपर है।": "लाल किताब नीले तारे के ऊपर है।",
        "एक काला वृत्त के बाईं ओर एक भूरी किताब है।": "एक काले वृत्त के बाईं ओर एक भूरी किताब है।",
        "चार पीला तारा।": "चार पीले तारे।",
        "हरी किताब चित्र में ऊपर हैं।": "हरी किताब चित्र में ऊपर है।",
    },
    "sw": {
        "Kuna duara dogo nyekundu.": "Kuna duara dogo jekundu.",
        "Kitabu nyeusi kiko kushoto kwa mraba wa bluu.": "Kitabu cheusi kiko kushoto kwa mraba wa bluu.",
        "Kitabu cheusi iko kushoto kwa mraba wa bluu.": "Kitabu cheusi kiko kushoto kwa mraba wa bluu.",
        "Kuna maua meupe tatu.": "Kuna maua meupe matatu.",
        "Kuna vitabu vinne ya kijani.": "Kuna vitabu vinne vya kijani.",
        "Duara la bluu liko juu ya mraba ya kijani.": "Duara la bluu liko juu ya mraba wa kijani.",
        "Mraba mekundu mkubwa.": None,
        "Mraba mkubwa mekundu.": "Mraba mkubwa mwekundu.",
    },
    "tr": {
        "Üç yeşil yıldızlar var.": "Üç yeşil yıldız var.",
        "Kırmızı kitap mavi çiçekin solunda.": "Kırmızı kitap mavi çiçeğin solunda.",
        "Kırmızı kitap mavi karein solunda.": "Kırmızı kitap mavi karenin solunda.",
        "Siyah bir kalbın üstünde sarı bir üçgen var.": "Siyah bir kalbin üstünde sarı bir üçgen var.",
        "Kırmızı kitap mavi kare solunda.": "Kırmızı kitap mavi karenin solunda.",
        "Mor kare kırmızı yıldızin altında.": "Mor kare kırmızı yıldızın altında.",
        "Resimde iki kırmızı daireler var.": "Resimde iki kırmızı daire var.",
    },
}
